"""Files of other people's: read without waiting, written whole or not at all, replaced in one exchange."""
