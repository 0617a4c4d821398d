"""The demo in the browser: `checkpoint.py` answers, `drawing.py` shows, `page.py` is the page, `limits.py` keeps it alive."""
