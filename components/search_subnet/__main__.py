from components.search_subnet.step import main

raise SystemExit(main())
