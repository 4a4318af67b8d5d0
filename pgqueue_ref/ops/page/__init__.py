"""The page for people: what is in the queue, which jobs failed and why, and the buttons that mend it.

Plain HTML, CSS and JavaScript modules that the browser runs as they are. They know nothing but the REST API
(docs/api.md), so the page can do no more than its reader's token may. `routes.router` serves the files.
"""
