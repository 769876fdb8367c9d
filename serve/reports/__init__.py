"""Pages of HTML that need nothing else: no script, no font, no picture from anywhere.

Plots are drawn by matplotlib and stand in the page as SVG whose colours are the page's own
variables, so that both follow the reader's choice of light or dark. Nothing is known here of jobs
or of benchmarks. Start reading in `document` and `drawing`.
"""
