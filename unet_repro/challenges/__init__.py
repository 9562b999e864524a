"""The EM and cell tracking challenges (Sec. 4): data, phantoms, jobs.

Tables 1 and 2.
"""
