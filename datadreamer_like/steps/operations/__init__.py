"""Operations on the rows of steps: map, filter, sort, splits, concat and others."""
