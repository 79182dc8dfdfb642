module example.com/shardctl/producer

go 1.27
