"""What a person who trains can get wrong with the data, as one class with a sentence."""


class DataError(ValueError):
    """There is nothing to train on, or the list of it does not fit: the sentence says what would be right."""
