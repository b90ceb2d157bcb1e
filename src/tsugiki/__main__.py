from tsugiki.cli import main

main()
