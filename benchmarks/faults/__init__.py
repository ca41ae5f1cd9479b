"""What becomes of packs and indexes when processes are killed, bits flip, inputs lie and disks fill up.

    __main__      `python -m benchmarks.faults`: options, campaigns, what earlier runs found
    kills         campaign `kills`: SIGKILLs of `qtr pack` and `qtr append`
    flips         campaign `flips`: single bits of a pack
    indexes       campaign `indexes`: SIGKILLs of `qtr index`, and single bits of an index
    fuzz          campaign `fuzz`: damaged inputs
    inputs        the inputs of `fuzz`, and how they are damaged
    environment   campaign `environment`: disks, folders and neighbours
    isolation     one trial, one process
    report        the tables

Every trial of `flips` and `fuzz` is a process.
"""
