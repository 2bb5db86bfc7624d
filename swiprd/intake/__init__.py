"""The process that receives what one uid's clients pass. Standard library only."""
