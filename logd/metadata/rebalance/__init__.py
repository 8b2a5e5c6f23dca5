"""The rebalance planner: from what the brokers hold to a list of moves, each with its reason.

``cluster.py`` says what is looked at, ``shares.py`` what would be even, ``draft.py`` what a layout
costs.  ``search.py`` finds one that is even enough, ``tabu.py`` one that moves fewer bytes,
``leaders.py`` chooses preferred leaders, and ``planner.py`` turns the difference into an explained,
ordered, bounded plan.  ``outlook.py`` says what a plan will find once a missing broker is given up.
"""
