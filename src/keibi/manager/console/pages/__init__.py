"""One file for each entry of the navigation; each lists its routes in `ROUTES`."""
