"""`mailboat demo`: the whole job on this machine, with an outage and a kill -9."""
