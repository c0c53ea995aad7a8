"""Results of recipes as one HTML page, as figures, and as tables for a README."""
