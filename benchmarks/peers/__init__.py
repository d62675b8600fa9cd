"""Other servers of the same model, to be measured beside viola. They import nothing of `service`."""
