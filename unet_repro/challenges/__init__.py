"""The EM and cell tracking challenges (Sec. 4, Tables 1 and 2): data, phantoms, jobs."""
