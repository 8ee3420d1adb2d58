"""An HTML page that shows a text, its Z-tokens, and what the reader repeats of them.

`page.html`, `page.css` and `page.js` are the template; `page.py` fills it in.
"""
