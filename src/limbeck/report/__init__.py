"""The page and the table a run leaves behind."""

from limbeck.report.page import write

__all__ = ["write"]
