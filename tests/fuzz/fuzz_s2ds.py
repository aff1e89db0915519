"""S2DS, as its controller may speak to it."""

from fuzzing import fuzz_party, hostile_parties

if __name__ == "__main__":
    fuzz_party(hostile_parties.DataServerParty)
