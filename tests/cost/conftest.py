from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a busy one is not a slow test
settings.load_profile("any machine")
