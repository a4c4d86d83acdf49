"""The paper in miniature: what is run (`plan`), how (`run`, `stage`), what came out (`findings`) and the `report`."""
