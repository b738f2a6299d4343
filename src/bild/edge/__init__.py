"""A large model elsewhere: what crosses a network, the two ends of it, and simulations of what a network costs.

Devices and the machine that verifies for them are :mod:`.wire`, :mod:`.connection`, :mod:`.remote` and
:mod:`.verification`. The others know no socket: :mod:`.link`, :mod:`.plan` and :mod:`.fleet` let a clock run that is
nobody's, over acceptance that was recorded.
"""
