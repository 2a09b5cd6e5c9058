"""The parts of the page, one file each: a function from runs to a section, or to nothing."""
