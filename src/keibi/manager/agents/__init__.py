"""The manager's side of the agents: enrolment tokens, identity, heartbeats, wake-ups, commands and events.

An *enrolment token* lets a computer become known; a *challenge* proves that an agent still holds its key; an *access token*
carries that proof for a quarter of an hour. A *revocation* makes the access tokens of a computer or tenant worthless at once.
A *wake-up* only says that a heartbeat is worth while: state is always fetched, so a lost one costs one interval.
"""
