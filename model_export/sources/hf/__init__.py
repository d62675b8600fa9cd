"""A checkpoint of the library `transformers` in, an encoder ready to export out; load.py is the door."""
