"""`keibi prove`: does something harmless for each protection module and shows what arrived at the manager, and how fast.

`run` goes through the modules; `rows` is what a row is and how an event is waited for; `integrity`, `malware` and `software` do
something for one module each. What must be held up to be proved is held in a private gate: a mount that nobody else sees.
"""
