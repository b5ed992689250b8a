"""What crosses the wire between agent and manager: pure values, no I/O.

*Enrolment* registers a computer's key; a *heartbeat* says what the agent has and answers what it should have; a *policy*
is the effective, compiled set of settings and rules for one computer, under a *generation*; an *event* is something that
happened; a *command* is one request to an agent and a *result* its answer; *status* says how each module is.

Envelopes ignore unknown fields, so that a newer side can add some. Settings reject them, so that a misspelt key is found.
"""
