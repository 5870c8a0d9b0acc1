"""Measurements as one self-contained HTML file: read offline, on a phone, in the dark, on paper.

`profile_page` and `evaluation_page` turn data into the page's text; the templates hold all markup. Nothing is measured
here.
"""
