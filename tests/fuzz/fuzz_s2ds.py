"""S2DS, with input from its controller."""

from fuzzing import fuzz_party, hostile_parties

if __name__ == "__main__":
    fuzz_party(hostile_parties.DataServerParty)
