"""What holds for all tests."""

from hypothesis import settings

# A deadline for one example measures how busy the machine is. What must not be slow has a test that says so.
settings.register_profile("keibi", deadline=None)
settings.load_profile("keibi")
