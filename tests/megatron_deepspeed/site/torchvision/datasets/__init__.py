class VisionDataset:
    pass


class ImageFolder:
    pass
