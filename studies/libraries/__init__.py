"""One search for each library that trains recurrent networks, and what it comes to.

``make study-libraries`` runs them with 25 trials, the tests with three.
"""
