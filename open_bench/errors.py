"""The errors that a user can mend; the command line prints them without a traceback and exits with 2."""


class UserError(Exception):
    """Something the user asked for cannot be done; the message says what, where and what to do."""


def near_matches(word: str, known: list[str], limit: int = 3) -> str:
    """' Did you mean a, b?' for a misspelt word, or '' when nothing is close."""
    import difflib

    close = difflib.get_close_matches(word, known, n=limit, cutoff=0.5)
    return f" Did you mean {', '.join(close)}?" if close else ""
