"""What a person who exports can get wrong, as one class with a sentence."""


class ExportError(ValueError):
    """The sentence says what does not fit and what would be right. No folder was written or changed."""
