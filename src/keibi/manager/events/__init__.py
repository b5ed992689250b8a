"""Events at the manager: taken in, kept, found again.

*eventd* is the child process that holds the event store (ClickHouse as a library, chDB) and speaks the ClickHouse HTTP
interface; a real ClickHouse server can stand in its place, given by URL. A *flush* is one insert that carries the batches of
many agents (group commit); an event is *acknowledged* only after the flush that carries it is on disk. A *quarantined* event
is one that could not be kept as it was sent: it is kept aside with the reason, and its batch goes through without it. The
*rollup* counts events by hour for charts. A *tag* is a word that a person puts on an event; it stands in a table of its own,
because tags never alter events. *Retention* says after how many days a tenant's events of one module are removed.
"""
