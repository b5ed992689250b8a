"""The audit trail: who did what to which object, in a chain of hashes for each tenant.

Each record holds the hash of the one before, so that a record changed or taken out later breaks the chain at that place;
`verify` finds it. The table refuses UPDATE and DELETE.
"""
