"""Numbers of the SPIR-V specification (unified1), as far as kernels need them, under its names."""

from __future__ import annotations


class Op:
    """Instructions."""

    Extension = 10
    ExtInstImport = 11
    ExtInst = 12
    MemoryModel = 14
    EntryPoint = 15
    ExecutionMode = 16
    Capability = 17
    TypeVoid = 19
    TypeBool = 20
    TypeInt = 21
    TypeFloat = 22
    TypeVector = 23
    TypeArray = 28
    TypeRuntimeArray = 29
    TypeStruct = 30
    TypePointer = 32
    TypeFunction = 33
    ConstantTrue = 41
    ConstantFalse = 42
    Constant = 43
    ConstantComposite = 44
    Function = 54
    FunctionEnd = 56
    Variable = 59
    Load = 61
    Store = 62
    AccessChain = 65
    Decorate = 71
    MemberDecorate = 72
    CompositeConstruct = 80
    CompositeExtract = 81
    ConvertFToU = 109
    ConvertFToS = 110
    ConvertSToF = 111
    ConvertUToF = 112
    UConvert = 113
    SConvert = 114
    FConvert = 115
    ConvertPtrToU = 117
    ConvertUToPtr = 120
    Bitcast = 124
    FNegate = 127
    IAdd = 128
    FAdd = 129
    ISub = 130
    FSub = 131
    IMul = 132
    FMul = 133
    UDiv = 134
    SDiv = 135
    FDiv = 136
    UMod = 137
    SRem = 138
    FRem = 140
    IsNan = 156
    IsInf = 157
    LogicalEqual = 164
    LogicalNotEqual = 165
    LogicalOr = 166
    LogicalAnd = 167
    LogicalNot = 168
    Select = 169
    IEqual = 170
    INotEqual = 171
    ULessThan = 176
    SLessThan = 177
    ULessThanEqual = 178
    SLessThanEqual = 179
    FOrdEqual = 180
    FUnordNotEqual = 183
    FOrdLessThan = 184
    FOrdLessThanEqual = 188
    ShiftRightLogical = 194
    ShiftRightArithmetic = 195
    ShiftLeftLogical = 196
    BitwiseOr = 197
    BitwiseXor = 198
    BitwiseAnd = 199
    Not = 200
    ControlBarrier = 224
    Phi = 245
    LoopMerge = 246
    SelectionMerge = 247
    Label = 248
    Branch = 249
    BranchConditional = 250
    Return = 253
    GroupNonUniformShuffle = 345
    GroupNonUniformShuffleXor = 346
    GroupNonUniformShuffleUp = 347
    GroupNonUniformShuffleDown = 348
    TypeCooperativeMatrix = 4456
    CooperativeMatrixLoad = 4457
    CooperativeMatrixStore = 4458
    CooperativeMatrixMulAdd = 4459


class Capability:
    Shader = 1
    Float16 = 9
    Int64 = 11
    Int16 = 22
    GroupNonUniform = 61
    GroupNonUniformShuffle = 65
    GroupNonUniformShuffleRelative = 66
    StorageBuffer16BitAccess = 4433
    VulkanMemoryModel = 5345
    BFloat16Type = 5116
    BFloat16CooperativeMatrix = 5118
    PhysicalStorageBufferAddresses = 5347
    CooperativeMatrix = 6022


class StorageClass:
    Input = 1
    Workgroup = 4
    Function = 7
    PushConstant = 9
    PhysicalStorageBuffer = 5349


class Decoration:
    Block = 2
    ArrayStride = 6
    BuiltIn = 11
    NonWritable = 24
    Offset = 35


class BuiltIn:
    WorkgroupId = 26
    LocalInvocationId = 27
    SubgroupLocalInvocationId = 41


class Scope:
    Workgroup = 2
    Subgroup = 3


class Semantics:
    AcquireRelease = 0x8
    MakeAvailable = 0x2000
    MakeVisible = 0x4000
    UniformMemory = 0x40
    WorkgroupMemory = 0x100


class MemoryAccess:
    Aligned = 0x2
    NonPrivatePointer = 0x20


class Glsl:
    """Instructions of the extended set GLSL.std.450."""

    Round = 1
    RoundEven = 2
    Trunc = 3
    FAbs = 4
    SAbs = 5
    Floor = 8
    Ceil = 9
    Sin = 13
    Cos = 14
    Tan = 15
    Sinh = 19
    Cosh = 20
    Tanh = 21
    Pow = 26
    Exp = 27
    Log = 28
    Exp2 = 29
    Log2 = 30
    Sqrt = 31
    InverseSqrt = 32
    UMin = 38
    SMin = 39
    UMax = 41
    SMax = 42
    NMin = 79
    NMax = 80
