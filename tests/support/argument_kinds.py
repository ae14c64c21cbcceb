"""What an argument of the command line takes: the function that is its type, and that function's setting."""


def kind_of(action):
    return getattr(action.type, 'func', action.type)


def setting_of(action):
    """What the type was made with: choices, suffixes, a minimum; None for a type without one."""
    return next(iter(getattr(action.type, 'args', ())), None)
