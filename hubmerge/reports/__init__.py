"""Results of recipes as people read them: one page, figures, and tables for a README."""
