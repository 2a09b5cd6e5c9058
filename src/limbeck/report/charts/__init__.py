"""Charts as SVG text: a scale, a frame, and one file per kind of picture. They know numbers and no run."""
