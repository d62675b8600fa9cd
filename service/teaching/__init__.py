"""A user's own sounds in, a head of their labels out, served at once; knows inference and sound, no HTTP."""
