"""How often answers are right, against the search and its beam size: `stagebeam evaluate`."""
