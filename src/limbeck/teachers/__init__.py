"""Teachers that are more than one network on one view."""

from limbeck.teachers.mixture import Mixture

__all__ = ["Mixture"]
