"""The console: pages rendered on the server, in English and Japanese, over the same services as the REST API.

A *page handler* takes a `Visit` (one request of one person) and returns what to show; it runs in a worker thread and speaks
only to services. A *label* is the word for a value of a closed set, in the reader's language. A *sentence* is an event told in
words. A *fragment* is a part of a page that HTMX asks for by itself.

Nothing is inline: no script, no style, no event attribute. The content security policy allows this host and nothing else.
"""
