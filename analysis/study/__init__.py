"""How measurements are named, made and kept: keys, cells, the store, pools of workers. Knows no torch."""
