"""Who may do what.

A *principal* is whoever asks: a signed-in user, an API key, or the system itself. A *role* is a set of *permissions*. A
*grant* gives a user a role for all tenants, for one tenant, or for a *group* of computers and all groups below it. A
*session* is a signed-in browser; an *API key* is the same for a program. Nobody can grant more than they have.
"""
