"""The mathematics of the flows, in torch only: one file per stage of the method."""
