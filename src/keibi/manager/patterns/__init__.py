"""Pattern sets: what other people know of malware, brought in by an administrator and given to computers by policy.

A *pattern set* has a name and *versions*; one version is current, and an administrator can return to an older one. A version
consists of *contents*, files that computers fetch: YARA sources, lists of SHA-256 hashes, ClamAV databases. An *importer* reads
what was uploaded and writes contents; its *report* says what was taken and, one by one, what was *refused* and why. A set belongs
to one customer, or to the provider, who shares it with all.
"""
