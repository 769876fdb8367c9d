"""Self-contained HTML pages, without scripts, fonts or images from elsewhere.

The pages are Jinja2 templates: `templates` has the frame, the elements and the plots of all pages,
and each report has its own template next to its module. Plots are inline SVG whose colors are the
page's CSS variables, so that they follow the reader's light or dark mode. The package is
independent of jobs and benchmarks.
"""
