"""A soak: campaigns whose workers, servers, wires and disks break at random; what is lost?"""
