"""How results are shown: tables, figures, published numbers, the page. Knows neither solvers nor problems."""
