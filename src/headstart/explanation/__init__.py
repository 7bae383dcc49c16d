"""Which words of a text, or which parts of a picture, speak for an answer."""
