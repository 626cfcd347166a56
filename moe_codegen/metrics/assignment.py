"""The assignment problem: to each row a column of its own so that the values chosen sum to the most."""

import numpy as np


def best_assignment(values: np.ndarray) -> list[int | None]:
    """For each row of (rows, columns) `values` its column, no column twice; None for rows left over.

    Shortest augmenting paths with potentials (Jonker and Volgenant, Computing 38, 1987), in `rows^2 columns` steps.
    """
    rows, columns = values.shape
    if rows > columns:
        turned = best_assignment(values.T)
        return [turned.index(row) if row in turned else None for row in range(rows)]
    row_of = np.full(columns + 1, -1)  # the last column is where each new row enters
    row_potential, column_potential = np.zeros(rows), np.zeros(columns + 1)
    for row in range(rows):
        row_of[columns], column = row, columns
        shortest = np.full(columns + 1, np.inf)
        before = np.full(columns + 1, columns)
        reached = np.zeros(columns + 1, bool)
        while row_of[column] >= 0:
            reached[column] = True
            here = row_of[column]
            slack = -values[here] - row_potential[here] - column_potential[:columns]
            closer = ~reached[:columns] & (slack < shortest[:columns])
            shortest[:columns][closer], before[:columns][closer] = slack[closer], column
            nearest = int(np.argmin(np.where(reached, np.inf, shortest)))
            step = shortest[nearest]
            row_potential[row_of[reached]] += step
            column_potential[reached] -= step
            shortest[~reached] -= step
            column = nearest
        while column != columns:
            row_of[column] = row_of[before[column]]
            column = before[column]
    return [int(np.flatnonzero(row_of[:columns] == row)[0]) for row in range(rows)]
