"""The field's own forms of data in, sounds with labels and parts out: no CSV has to be written."""
